"""Speed, side by side: the same weights and inputs, several ways to compute the clip, in turn; what each takes, and where it goes."""
