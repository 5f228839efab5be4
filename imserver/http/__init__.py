"""HTTP for all servers: typed routes on twisted.web, problems, OpenAPI, the standard routes and the
client."""
