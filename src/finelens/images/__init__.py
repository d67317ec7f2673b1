"""From files and Python objects to decoded images, views and batches."""
