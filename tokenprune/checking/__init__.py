"""Does pruning hold on this model, with this prompt, today? `tokenprune.check` answers, `prune(verify=...)` insists."""
