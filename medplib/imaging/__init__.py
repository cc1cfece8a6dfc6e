"""Files to arrays and back, with the geometry that ties a mask to its source."""
