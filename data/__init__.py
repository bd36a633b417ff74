"""What is stored and read: databases, batches, the order of training data, the feature index."""
