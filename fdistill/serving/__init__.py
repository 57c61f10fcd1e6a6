"""The service: one-step generators over HTTP, and training runs as jobs. It imports training and below."""
