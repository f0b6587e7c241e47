"""Pages: drawn documents, and the bundled model that reads them."""
