"""Inside a worker: data, model, DeepSpeed engine, checkpoints, evaluation. Names of heavy libraries load late."""
