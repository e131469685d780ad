"""A model on its way in: bundles read and completed, files kept by digest, versions signed."""
