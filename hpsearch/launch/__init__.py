"""Workers on a cluster: what Slurm and Kubernetes are told, so that each runs the unchanged `hpsearch worker`."""
