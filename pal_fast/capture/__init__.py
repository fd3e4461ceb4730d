"""From a model to the output of one of its layers: names, hooks, layouts, and what must be put back afterwards."""
