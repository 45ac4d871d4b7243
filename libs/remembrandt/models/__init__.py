"""The networks, one folder a model: model.py, config.py, objective.py, sampling.py. They see tensors only."""
