//! Values of the contract as the bytes of a gRPC message: JSON.

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Encodes `E`, decodes `D`.
pub(crate) struct Json<E, D>(PhantomData<(E, D)>);

impl<E, D> Json<E, D> {
    pub fn new() -> Json<E, D> {
        Json(PhantomData)
    }
}

impl<E, D> Codec for Json<E, D>
where
    E: Serialize + Send + 'static,
    D: DeserializeOwned + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Json<E, ()>;
    type Decoder = Json<(), D>;

    fn encoder(&mut self) -> Json<E, ()> {
        Json::new()
    }

    fn decoder(&mut self) -> Json<(), D> {
        Json::new()
    }
}

impl<E: Serialize> Encoder for Json<E, ()> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(to.writer(), &item).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<D: DeserializeOwned> Decoder for Json<(), D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let told = |error: serde_json::Error| {
            Status::invalid_argument(format!(
                "not a message of this contract: {error}; is it of another version?"
            ))
        };
        serde_json::from_reader(from.reader()).map(Some).map_err(told)
    }
}
