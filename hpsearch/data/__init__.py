"""The data sets: each function reads the training part only; the test split stays sealed."""

# what stands before the colon in a study's data.name -> a function (Source) -> RawImages
DATASETS = {
    "cifar100": "hpsearch.data.cifar100:read_train",
    "digits": "hpsearch.data.digits:read_train",
    "folder": "hpsearch.data.folder:read_train",
    "stl5": "hpsearch.data.stl5:read_train",
}

# data sets whose source may change under the same name -> a function (Source) -> text that changes with it
STAMPS = {
    "folder": "hpsearch.data.folder:stamp",
    "stl5": "hpsearch.data.stl5:stamp",
}

# data sets of official files -> a function (Source) -> where they are; None if they are to be downloaded
PLACES = {
    "cifar100": "hpsearch.data.cifar100:find",
    "stl5": "hpsearch.data.stl5:find",
}
