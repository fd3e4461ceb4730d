"""From a layer's output and the logits to the gradient that is attributed, in any process, and to its derivative."""
