"""What attention is: axes, media, weights, layers and maps, results, and how they are saved."""
