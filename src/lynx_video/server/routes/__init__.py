"""What can be asked of the service, by what it is about."""
