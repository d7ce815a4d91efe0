"""A stage on a task: predictions, then outcomes and scores. Rescoring needs no model."""
