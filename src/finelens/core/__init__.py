"""What every other package rests on and that knows nothing of images: options, console, threads, processes, file formats."""
