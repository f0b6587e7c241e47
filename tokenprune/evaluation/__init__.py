"""Methods x budgets x tasks through lmms-eval, and what is made of the results."""
