"""Training: schedules, optimizers, augmentation, and the program that trains one recipe."""

OPTIMIZERS = {
    "sgd": "hpsearch.train.optimizers:Sgd",
    "adam": "hpsearch.train.optimizers:Adam",
    "adamw": "hpsearch.train.optimizers:AdamW",
}

# name -> a function (steps, Span) -> Setting
SCHEDULES = {
    "constant": "hpsearch.train.schedules:constant",
    "onecycle": "hpsearch.train.schedules:onecycle",
    "cosine": "hpsearch.train.schedules:cosine",
    "exponential": "hpsearch.train.schedules:exponential",
}

# name -> the function (name, images, draws, mean, std) -> images that carries it out
AUGMENTATIONS = {
    "none": "hpsearch.train.augment:augment",
    "paper": "hpsearch.train.augment:augment",
    "crop-flip": "hpsearch.train.augment:augment",
}
