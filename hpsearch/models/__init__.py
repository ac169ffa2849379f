"""The architectures: each a plain nn.Module for one trial, with its hyperparameters in its signature."""

# model.name in a study -> a class (input_shape, num_classes, *, hyperparameters) -> nn.Module
MODELS = {
    "lenet": "hpsearch.models.lenet:LeNet5",
    "lenet-bn": "hpsearch.models.lenet_bn:LeNet5BatchNorm",
    "2lp": "hpsearch.models.perceptron:TwoLayerPerceptron",
    "3lp": "hpsearch.models.perceptron:ThreeLayerPerceptron",
}
