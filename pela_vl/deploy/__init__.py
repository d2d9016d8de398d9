"""What is done with a trained model: compress, optimise, export, submit, visualise."""
