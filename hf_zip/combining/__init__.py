"""Fine-tunes of one base model → one model, a tensor at a time: pure functions on tensors."""
