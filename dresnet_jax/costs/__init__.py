"""What programs cost: counted, timed, or compiled for chips that are not here."""
