"""The test splits. Only `hpsearch/final_test.py` imports this package, and a test proves that nothing else can.

A reader is a function (Source, classes of the training part) -> SealedImages; it raises DataError.
"""

# what stands before the colon in a study's data.name -> the reader of its test split
TESTS = {
    "cifar100": "hpsearch.sealed.cifar100:read_test",
    "digits": "hpsearch.sealed.digits:read_test",
    "folder": "hpsearch.sealed.folder:read_test",
    "stl5": "hpsearch.sealed.stl5:read_test",
}
