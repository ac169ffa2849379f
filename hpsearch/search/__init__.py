"""The search half: what to try (samplers) and what to stop (pruners). It knows no torch."""

# name -> the function that makes it; the function's keyword arguments are the options of the study file's section
SAMPLERS = {
    "tpe": "hpsearch.search.samplers:tpe",
    "random": "hpsearch.search.samplers:random",
    "gp": "hpsearch.search.samplers:gp",
    "cmaes": "hpsearch.search.samplers:cmaes",
    "grid": "hpsearch.search.samplers:grid",
    "qmc": "hpsearch.search.samplers:qmc",
}

PRUNERS = {
    "asha": "hpsearch.search.pruners:asha",
    "hyperband": "hpsearch.search.pruners:hyperband",
    "median": "hpsearch.search.pruners:median",
    "none": "hpsearch.search.pruners:none",
    "race": "hpsearch.search.racing:race",
}
