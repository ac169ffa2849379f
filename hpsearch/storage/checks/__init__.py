"""The checks of `fsck.py`: what is known about a study (facts), and one module for each kind of promise about it."""
