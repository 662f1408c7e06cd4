"""What every tuner of petx shares: the layer, the model, the report, and how a configuration is checked."""
