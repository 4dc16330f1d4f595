"""The command line tool ``strata``: start the service, talk to it, teach it, operate it."""
