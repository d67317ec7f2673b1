"""What predictions are worth: metrics with labels, and without any calibration, conformal sets, signals, confusions and the verdict."""
