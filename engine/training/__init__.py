"""One run's training: plan, model, step, epochs, evaluation, checkpoint."""
