"""Dataset distillation as one reverse sweep over any inner problem: windows, optimisers, objectives and the outer loop."""
