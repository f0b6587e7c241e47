"""An OpenAI-compatible server for a pruned model: `tokenprune serve`."""
