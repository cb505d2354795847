"""Training of one run: plan, model, optimizer step, epochs, evaluation and checkpoints."""
