"""What training costs on machines that are not there."""
