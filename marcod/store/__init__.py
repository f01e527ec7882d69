"""All SQL of marcod: hides two databases behind one set of calls and promises that no row is lost or doubled.

``engine`` opens SQLite or PostgreSQL and runs whole transactions, again when the fault was passing;
``schema`` is the tables; ``catalog`` takes in what the imagers delivered; ``queue`` alone changes the state of
jobs; ``results`` writes what a batch gave in one transaction; ``summaries`` keeps the verdict on every inspection
and first-time hits; ``versions`` keeps model versions and aliases; ``workers`` who is alive; ``reports`` reads for
people; ``migrate`` brings the schema up to date.
"""
