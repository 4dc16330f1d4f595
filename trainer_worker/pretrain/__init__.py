"""Train the embedded base's projector and low-rank change, once, on generated pictures and easy-VQA."""
