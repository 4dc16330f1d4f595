"""Run gateway, trainer worker and Redis as three processes under one command."""
