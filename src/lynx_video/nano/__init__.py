"""The toy world: people drawn by code, and every part of Lynx as the real class at toy size, trained on them."""
