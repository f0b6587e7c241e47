"""Pure tensor arithmetic: budgets, selections, positions, FLOPs. Knows no model and no method."""
