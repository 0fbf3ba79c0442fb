//! What the pageserver and its clients agree on: the key space, the values stored under the keys,
//! layer file names, pagestream messages and the models of the HTTP API.

pub mod key;
pub mod layer_name;
pub mod models;
pub mod pagestream;
pub mod reltag;
pub mod tenant_config;
pub mod value;
