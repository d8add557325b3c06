"""What is learned: encoder, heads, loss, user-state arithmetic, data, training, calibration, evaluation, artifact."""
