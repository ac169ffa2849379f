"""Small studies for tests, as TOML."""

TINY = """
name = "tiny"
[model]
name = "2lp"
[data]
name = "digits"
image_size = 8
[training]
epochs = 3
hidden_width = 16
[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
optimizer = ["sgd", "adam"]
momentum = { low = 0.5, high = 0.9, when = { optimizer = "sgd" } }
[pruner]
name = "asha"
[budget]
trials = 6
[[first]]
optimizer = "sgd"
learning_rate = 0.01
momentum = 0.9
"""
