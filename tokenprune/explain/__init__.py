"""Why tokens stayed or went: by stage, by token, as a page."""
