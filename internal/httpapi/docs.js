// validatorUrl null: no badge, and no request to another host.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  docExpansion: "list",
  tagsSorter: "alpha",
  validatorUrl: null,
  tryItOutEnabled: false,
  persistAuthorization: false,
});
