"""A trained model put to use: predict, evaluate, export, register, demo; and MLflow's page."""
