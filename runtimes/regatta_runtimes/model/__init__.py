"""What lies in a model file, read without any runtime."""
