"""MNIST shown to circuits, as constant inputs or pixel by pixel: models, training, evaluation."""
