"""Model runtime: networks, preprocessing, bundles and their registry, and imports of models from elsewhere."""
