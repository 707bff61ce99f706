"""What is claimed about dataset distillation, and the algorithms themselves, over any array-API namespace."""
