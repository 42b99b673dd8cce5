"""limbeck: knowledge distillation for PyTorch."""
