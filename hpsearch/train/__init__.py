"""Training: schedules, optimizers, augmentation, and the program that trains one recipe."""

# name -> an Optimizer: a function that updates parameters, and the names of the buffers that it keeps
OPTIMIZERS = {
    "sgd": "hpsearch.train.optimizers:SGD",
    "adam": "hpsearch.train.optimizers:ADAM",
    "adamw": "hpsearch.train.optimizers:ADAMW",
}

# name -> a function (step, recipe, steps_per_epoch) -> Setting
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
