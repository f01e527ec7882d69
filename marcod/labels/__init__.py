"""Labels that people give: from files, from the command line and from a LIMS, into the database."""
