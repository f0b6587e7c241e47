"""Pages: drawn documents, and the bundled model "Pages" that reads them."""
